//! The built binary, held against what Tapeout promises, by other people's tools where there are any.
//! One binary; a file for each promise.
#![allow(clippy::print_stderr, reason = "a test that skips says so aloud")]

mod common;

mod airgap;
mod attributes;
mod bootstrap;
mod carried;
mod changesets;
mod cli;
mod escapes;
mod full_disk;
mod graph;
mod graph_shown;
mod host;
mod identities;
mod images;
mod keeping;
mod kept_graph;
mod killed;
mod layers;
mod limits;
mod newcomer;
mod nothing_of_the_host;
mod outside_tools;
mod owners;
mod places;
mod programs;
mod range;
mod readme;
mod real_programs;
mod registry;
mod reproducible;
mod rule_graph;
mod sandbox;
mod secrets;
mod shell;
mod templates;
mod twice;
mod unchanged;

/// A file that nobody declares is a promise that nobody tests.
#[test]
fn every_file_of_this_folder_is_part_of_it() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let main = std::fs::read_to_string(folder.join("main.rs")).expect("main.rs");
    for file in std::fs::read_dir(&folder).expect("tests").flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        if let Some(module) = name.strip_suffix(".rs").filter(|module| *module != "main") {
            assert!(main.contains(&format!("\nmod {module};\n")), "tests/main.rs doesn't name {name}");
        }
    }
}
