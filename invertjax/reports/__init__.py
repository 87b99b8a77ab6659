"""Reports as strings and bytes; nothing here touches a file."""
