"""An HTTP server for a model: batches of concurrent requests, limits on everything that waits, reload, metrics."""
