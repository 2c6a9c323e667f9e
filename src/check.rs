//! `production_server check`: whether what is said on the command line, in the environment and in the file would work here.

use crate::config::Loaded;

/// Says what was looked at; what cannot be read never comes here. The exit code.
pub fn run(loaded: &Loaded) -> u8 {
    match &loaded.file {
        Some(file) => println!("{}: valid", file.text.path.display()),
        None => println!("no configuration file; flags and environment are valid"),
    }
    0
}
