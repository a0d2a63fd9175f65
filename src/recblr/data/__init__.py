"""Raw log -> ordered, filtered, packed sequences -> batches."""
