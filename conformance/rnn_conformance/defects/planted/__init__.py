"""The planted defects, by the subject of the law that kills them first."""
