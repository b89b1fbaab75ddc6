"""Data sets: folders of pictures with captions, as columnar handles; buckets, captions and batches of an epoch."""
