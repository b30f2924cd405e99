"""Where the joints of an image are, and how far that is from where they were asked to be."""
