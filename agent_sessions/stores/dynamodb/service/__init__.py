"""DynamoDB itself: clients, requests, the table."""
