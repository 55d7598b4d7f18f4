//! The manual page has each flag, key, signal, route, metric and exit code of the program, and no
//! other.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use patroniglue::routes::ROUTES;

type Names = BTreeSet<String>;

#[test]
fn the_manual_has_every_flag() {
    let help = Command::new(env!("CARGO_BIN_EXE_patroniglue")).arg("-help").output();
    let help = String::from_utf8(help.expect("it runs").stdout).expect("text");
    let flags = help.lines().filter_map(|line| line.strip_prefix("  -")?.split(' ').next());
    assert_same(names(flags), items("OPTIONS", "Fl"));
}

#[test]
fn the_manual_has_every_key() {
    let mut keys = Names::new();
    for file in ["src/config/raw.rs", "src/config/ports.rs", "src/config/dcs.rs"] {
        keys.extend(keys_of(&read(file)));
    }
    assert_same(keys, items("CONFIGURATION", "Ic"));
}

#[test]
fn the_manual_has_every_signal() {
    let source = read("src/shell/signals.rs");
    let words = source.split(|char: char| !char.is_alphanumeric());
    let signals = words.filter(|word| word.starts_with("SIG"));
    assert_same(names(signals), items("SIGNALS", "Dv"));
}

#[test]
fn the_manual_has_every_route() {
    assert_same(names(ROUTES.iter().map(|(path, _)| *path)), items("ROUTES", "Pa"));
}

#[test]
fn the_manual_has_every_metric() {
    let source = read("src/admin/metrics.rs");
    let words = source.split('"').filter(|word| {
        let is_name = |char: char| char.is_ascii_lowercase() || char == '_';
        let prefixes = ["patroniglue_", "process_"];
        prefixes.iter().any(|prefix| word.starts_with(prefix)) && word.chars().all(is_name)
    });
    assert_same(names(words), items("METRICS", "Li"));
}

#[test]
fn the_manual_has_every_exit_code() {
    let source = read("src/main.rs");
    let codes = source.split("ExitCode::").skip(1).filter_map(|rest| {
        let number = rest.strip_prefix("from(").and_then(|rest| rest.split(')').next());
        let is_named = |name| rest.starts_with(name);
        number.or(is_named("SUCCESS").then_some("0")).or(is_named("FAILURE").then_some("1"))
    });
    assert_same(names(codes), items("EXIT STATUS", ""));
}

/// The keys as `section.key`: the fields of each section's struct, as serde names them.
fn keys_of(source: &str) -> Names {
    let mut keys = Names::new();
    for part in source.split("struct Raw").skip(1) {
        let (section, fields) = part.split_once(" {\n").expect("a struct");
        let fields = fields.split("\n}").next().unwrap_or_default();
        let mut renamed = None;
        for line in fields.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix("#[serde(rename = \"") {
                renamed = name.split('"').next();
            } else if let Some((field, _)) = line.split_once(": ").filter(|_| section != "Config") {
                let field = field.rsplit(' ').next().unwrap_or_default().replace('_', "-");
                let key = renamed.take().unwrap_or(&field);
                keys.insert(format!("{}.{key}", section.to_lowercase()));
            }
        }
    }
    keys
}

/// The tags of the lists of a section of the page, `.It MACRO name , name …`, with the name of the
/// subsection in front.
fn items(section: &str, macro_name: &str) -> Names {
    let page = read("extra/patroniglue.8");
    let heading = format!(".Sh {section}\n");
    let text = page.split(&heading).nth(1).expect("the section");
    let text = text.split("\n.Sh ").next().unwrap_or_default();
    let mut prefix = String::new();
    let mut found = Names::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix(".Ss ") {
            prefix = format!("{name}.");
        } else if let Some(tag) = line.strip_prefix(".It ") {
            let tag = tag.strip_prefix(macro_name).expect("one kind of tag");
            let tag = tag.split(" Ar ").next().unwrap_or_default();
            found.extend(tag.split(" , ").map(|name| format!("{prefix}{}", name.trim())));
        }
    }
    found
}

fn names<'a>(found: impl Iterator<Item = &'a str>) -> Names {
    found.map(str::to_owned).collect()
}

fn assert_same(program: Names, page: Names) {
    assert!(program.len() > 2, "the program has only {program:?}");
    let missing: Vec<_> = program.difference(&page).collect();
    let surplus: Vec<_> = page.difference(&program).collect();
    let both = (missing.is_empty(), surplus.is_empty());
    assert_eq!(both, (true, true), "missing in the page: {missing:?}; surplus: {surplus:?}");
}

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).expect("a file")
}
