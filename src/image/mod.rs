//! OCI image layouts: layers, config, manifest, index.
