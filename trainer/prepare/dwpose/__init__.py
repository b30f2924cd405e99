"""DWPose (arXiv 2307.15880): a detector finds the person, a second network the 133 joints in a crop around it."""
