"""Exports of labeling tools, read as class names, images and masks; one file a tool."""
