//! The joining room: order, keys, and one rule from request to changeset.
