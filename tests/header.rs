//! `include/eesd.h` is what cbindgen makes of `src/ffi`.

use std::path::Path;

/// In the order in which a reader of the header wants them.
const SOURCES: [&str; 16] = [
    "version",
    "status",
    "argument",
    "log",
    "device",
    "exit_choice",
    "model",
    "text",
    "session_params",
    "session",
    "source",
    "request",
    "answer",
    "generate",
    "snapshot",
    "handle",
];

#[test]
fn the_committed_header_is_the_generated_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml");
    let sources = SOURCES.map(|name| root.join(format!("src/ffi/{name}.rs")));
    let builder = cbindgen::Builder::new().with_config(config);
    let bindings = sources.into_iter().fold(builder, cbindgen::Builder::with_src).generate().expect("cbindgen");
    let mut made = Vec::new();
    bindings.write(&mut made);
    let made = String::from_utf8(made).expect("UTF-8");

    let header = root.join("include/eesd.h");
    if std::env::var_os("EESD_WRITE_HEADER").is_some() {
        std::fs::write(&header, &made).expect("the header can be written");
    }
    let committed = std::fs::read_to_string(&header).unwrap_or_default();
    let differs = made.lines().zip(committed.lines()).position(|(made, committed)| made != committed);
    assert!(
        made == committed,
        "include/eesd.h is not what src/ffi says, from line {} on: EESD_WRITE_HEADER=1 cargo test --test header writes it",
        differs.unwrap_or(made.lines().count().min(committed.lines().count())) + 1
    );
}
