"""From a folder of photographs to training shards: `python -m trainer prepare PHOTOS --out DATA`.

What is made for one image is an *artefact*: one or more files in the image's folder, and a record that says what they
were made with and from. Whether an artefact is there, stale or failed follows from its record alone, so a run that was
interrupted anywhere goes on where it was, and a changed model makes again exactly what depends on it.

    DATA/
      manifest.json             the images: their ids, sources, buckets; what was rejected and why
      recipes.json              what every artefact is made with, as the last run wanted it
      samples/ab/ab12…/         one folder an image: image.npy, image.record.json, …
      shards/                   what training reads
      card.md, card.png         what a person reads
"""
