"""Squashfs 4.0 images, little endian: one module for each structure on disk, named as in the format description.

Sources of the format: Linux Documentation/filesystems/squashfs.rst and fs/squashfs/squashfs_fs.h, the sources of
squashfs-tools for the names of fields, and what mksquashfs writes.
"""
