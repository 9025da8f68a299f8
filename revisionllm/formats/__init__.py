"""One reader and writer per annotation and prediction format."""
