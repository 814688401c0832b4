"""Where things lie: the names of items, the record, the parts that it names, and payloads of any size."""
