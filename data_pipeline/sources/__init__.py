"""One reader per dataset layout."""
