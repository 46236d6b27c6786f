//! One file a command: turn arguments into a request, call below, print.

pub mod bootstrap;
pub mod build;
pub mod completions;
pub mod doctor;
pub mod explain;
pub mod export;
pub mod fetch;
pub mod fsck;
pub mod gc;
pub mod graph;
pub mod image;
pub mod init;
pub mod list;
pub mod lock;
pub mod log;
pub mod pod;
pub mod push;
pub mod shell;
