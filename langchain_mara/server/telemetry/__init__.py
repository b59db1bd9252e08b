"""What OpenTelemetry is told of requests."""
