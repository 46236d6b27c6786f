//! A workspace written anew from the docs alone.
