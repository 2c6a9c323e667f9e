// What whole.toml names.
