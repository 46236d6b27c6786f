//! What the graph looks like.
