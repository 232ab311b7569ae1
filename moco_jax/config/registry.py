"""Names that settings may have, known before anything heavy is imported."""

# `dataset`, beside 'tfds:NAME'; `data.sources.open_source` opens them.
SOURCES = ("digits", "folder", "tar", "tfrecord", "arrayrecord")
SOURCES_IN_WORDS = f"{', '.join(SOURCES)} and tfds:NAME, as in tfds:cifar10"
