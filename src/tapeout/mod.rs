//! What an image takes: picked files, and the closure of what they need.
