"""VisionZip inside other people's model libraries."""
