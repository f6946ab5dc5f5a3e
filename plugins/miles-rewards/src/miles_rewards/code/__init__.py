"""Programs that responses contain, run against test cases."""
