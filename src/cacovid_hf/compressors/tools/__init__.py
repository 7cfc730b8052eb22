"""What compression methods share."""
