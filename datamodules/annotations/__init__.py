"""Annotations of images beside tags: masks, points, scribbles and boxes, and the files of annotation tools."""
