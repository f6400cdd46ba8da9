"""The command line: one file a command. It parses, calls one public function, and prints."""
