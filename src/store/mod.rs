//! The store: what is kept, named by digest.
