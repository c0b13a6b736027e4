"""Image download: img2dataset on Ray behind an HTTP client that is safe against SSRF."""
