//! The rules of the sources as tests: layers, lengths, language.

use std::fs;
use std::path::{Path, PathBuf};

/// A source file of the project, and its code without comments.
struct Source {
    name: String,
    text: String,
    /// The lines up to the file's tests.
    code: Vec<String>,
}

impl Source {
    fn read(path: &Path) -> Source {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let name = path.strip_prefix(root).expect("below the root").display().to_string();
        let text = fs::read_to_string(path).expect("a source is text");
        let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let code = code.lines().map(without_comment).collect();
        Source { name, text, code }
    }

    /// `name:line` of each line of code that holds `word` as a whole word.
    fn lines_with(&self, word: &str) -> Vec<String> {
        let hit = |line: &&(usize, &String)| has_word(line.1, word);
        let lines = self.code.iter().enumerate();
        let lines: Vec<(usize, &String)> = lines.collect();
        lines
            .iter()
            .filter(hit)
            .map(|(at, _)| format!("{}:{}: {word}", self.name, at + 1))
            .collect()
    }

    /// Whether it is part of the core, which has no sockets, files or clocks.
    fn is_core(&self) -> bool {
        self.name.starts_with("src/")
            && !self.name.starts_with("src/shell/")
            && self.name != "src/main.rs"
    }

    /// Its top-level module: `shell`, `engine`, `http`, …
    fn module(&self) -> &str {
        let inside = self.name.trim_start_matches("src/").trim_end_matches(".rs");
        inside.split('/').next().unwrap_or(inside)
    }
}

fn without_comment(line: &str) -> String {
    match line.find("//") {
        // "://" is an address, not a comment
        Some(at) if !line[..at].ends_with(':') => line[..at].to_owned(),
        _ => line.to_owned(),
    }
}

fn has_word(line: &str, word: &str) -> bool {
    let is_part = |char: char| char.is_alphanumeric() || char == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

fn sources(folders: &[&str]) -> Vec<Source> {
    let mut paths = Vec::new();
    for folder in folders {
        collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &["rs"], &mut paths);
    }
    paths.sort();
    paths.iter().map(|path| Source::read(path)).collect()
}

/// The files of a folder, or the path itself, with one of these extensions.
fn collect(path: &Path, extensions: &[&str], paths: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            collect(&entry.path(), extensions, paths);
        }
    } else {
        let extension = path.extension().unwrap_or_default();
        if extensions.iter().any(|one| extension == *one) {
            paths.push(path.to_owned());
        }
    }
}

fn everything() -> Vec<Source> {
    sources(&["src", "tests", "examples", "benches", "fuzz/fuzz_targets"])
}

fn assert_none(rule: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

#[test]
fn the_core_has_no_sockets_no_files_and_no_clocks() {
    let words = [
        "mio",
        "rustls",
        "std::net",
        "std::fs",
        "std::io",
        "Instant",
        "SystemTime",
        "HashMap",
        "HashSet",
        "thread",
        "thread_local",
    ];
    let core = sources(&["src"]).into_iter().filter(Source::is_core).collect::<Vec<_>>();
    assert!(core.len() > 10);
    let found = core.iter().flat_map(|source| words.map(|word| source.lines_with(word)));
    assert_none("only main.rs and shell/ may contain this", found.flatten().collect());
}

#[test]
fn one_poll_one_clock_one_home_of_rustls() {
    let homes = [
        ("Poll", "src/shell/mod.rs"),
        ("Instant::now", "src/shell/clock.rs"),
        ("SystemTime::now", "src/shell/clock.rs"),
        ("rustls", "src/shell/tls/"),
        ("httparse", "src/http/head.rs"),
        ("serde_yaml", "src/config/"),
        ("HTTP/1.1 {status}", "src/http/write.rs"),
    ];
    let all = sources(&["src"]);
    for (word, home) in homes {
        let lines = |inside: bool| {
            let homes = all.iter().filter(move |source| source.name.starts_with(home) == inside);
            homes.flat_map(|source| source.lines_with(word)).collect::<Vec<_>>()
        };
        assert!(!lines(true).is_empty(), "{home} has no {word}");
        assert_none(&format!("only {home} may contain this"), lines(false));
    }
}

#[test]
fn every_file_begins_with_its_purpose() {
    let silent = everything().into_iter().filter(|source| {
        let first = source.text.lines().next().unwrap_or_default();
        !first.starts_with("//! ") || first.len() < 20
    });
    assert_none("no purpose on the first line", silent.map(|source| source.name).collect());
}

#[test]
fn lines_functions_and_files_have_a_maximum_length() {
    let mut long = Vec::new();
    for source in everything() {
        for (at, line) in source.text.lines().enumerate() {
            if line.chars().count() > LINE_CHARS_MAX && !is_table_row(line) {
                long.push(format!("{}:{}: a line of {}", source.name, at + 1, line.len()));
            }
        }
        let is_code = source.name.starts_with("src/") && !source.name.ends_with("/tests.rs");
        if source.code.len() > FILE_LINES_MAX && is_code {
            long.push(format!("{}: {} lines without tests", source.name, source.code.len()));
        }
        long.extend(long_functions(&source));
    }
    assert_none("too long", long);
}

/// Whether it is a row of a test's table, which rustfmt leaves long.
fn is_table_row(line: &str) -> bool {
    let row = line.trim_start();
    row.starts_with('(') || row.starts_with('"')
}

fn long_functions(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    let lines: Vec<&str> = source.text.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let is_function = has_word(line, "fn") && line.trim_end().ends_with('{');
        if !is_function || line.trim_start().starts_with("//") {
            continue;
        }
        let end = format!("{}}}", " ".repeat(indent));
        let length = lines[at..].iter().position(|line| *line == end).unwrap_or(0);
        if length > FUNCTION_LINES_MAX {
            found.push(format!("{}:{}: a function of {length}", source.name, at + 1));
        }
    }
    found
}

#[test]
fn nothing_is_left_unfinished() {
    let left = ["todo!", "unimplemented!", "FIXME", "XXX", "TODO"];
    let mut found = Vec::new();
    for source in everything().iter().filter(|source| source.name != "tests/tidy.rs") {
        for (at, line) in source.text.lines().enumerate() {
            if left.iter().any(|word| line.contains(word)) || line.contains("#[ignore") {
                found.push(format!("{}:{}: {}", source.name, at + 1, line.trim()));
            }
        }
        if source.name.starts_with("src/") {
            let unwraps = source.code.iter().enumerate().filter(|(_, l)| l.contains(".unwrap()"));
            found.extend(unwraps.map(|(at, _)| format!("{}:{}: unwrap", source.name, at + 1)));
        }
    }
    assert_none("unfinished", found);
}

#[test]
fn unit_tests_are_at_the_end_of_a_file() {
    let misplaced = sources(&["src"]).into_iter().filter(|source| {
        let tests = source.text.split("#[cfg(test)]\nmod tests {").nth(1);
        tests.is_some_and(|tests| !tests.trim_end().ends_with("\n}") || tests.contains("\n}\n\n"))
    });
    assert_none("code after the tests", misplaced.map(|s| s.name).collect());
}

#[test]
fn imports_come_in_order() {
    let mut found = Vec::new();
    for source in sources(&["src"]) {
        let uses = source.code.iter().enumerate().filter(|(_, line)| line.starts_with("use "));
        let ranks: Vec<(usize, u8)> = uses.map(|(at, line)| (at, import_rank(line))).collect();
        let wrong = ranks.windows(2).filter(|pair| pair[0].1 > pair[1].1);
        found.extend(wrong.map(|pair| format!("{}:{}", source.name, pair[1].0 + 1)));
    }
    assert_none("std first, then crates, then our modules", found);
}

fn import_rank(line: &str) -> u8 {
    let path = line.trim_start_matches("use ");
    match path.split("::").next() {
        Some("std") => 0,
        Some("crate" | "self" | "super" | "patroniglue") => 2,
        _ => 1,
    }
}

/// The imports allowed are those of the drawing in lib.rs.
#[test]
fn modules_import_only_lower_layers() {
    let mut found = Vec::new();
    for source in sources(&["src"]) {
        let module = source.module().to_owned();
        if module == "lib" || module == "main" {
            continue;
        }
        let allowed = LAYERS.iter().find(|(name, _)| *name == module);
        let Some((_, allowed)) = allowed else {
            found.push(format!("{}: {module} is not in the table", source.name));
            continue;
        };
        for (at, line) in source.code.iter().enumerate() {
            for rest in line.split("crate::").skip(1) {
                let end = rest.find(|char: char| !char.is_alphanumeric() && char != '_');
                let other = &rest[..end.unwrap_or(rest.len())];
                if other != module && !allowed.contains(&other) {
                    found.push(format!("{}:{}: {module} -> {other}", source.name, at + 1));
                }
            }
        }
    }
    assert_none("an import that is not in the drawing", found);
    for (at, (module, below)) in LAYERS.iter().enumerate() {
        let known_before = LAYERS[..at].iter().find(|(name, _)| below.contains(name));
        assert!(known_before.is_none(), "{module} imports a higher layer: a cycle");
    }
}

/// From top to bottom: each module and the lower modules it may import.
const LAYERS: &[(&str, &[&str])] = &[
    (
        "shell",
        &[
            "VERSION",
            "config",
            "engine",
            "admin",
            "frontend",
            "cache",
            "answer",
            "reply",
            "fetch",
            "failure",
            "journal",
            "logformat",
            "changes",
            "stats",
            "node",
            "http",
            "shrink",
            "slots",
            "time",
        ],
    ),
    ("config", &["logformat", "routes"]),
    (
        "engine",
        &[
            "admin",
            "frontend",
            "journal",
            "changes",
            "stats",
            "fetch",
            "failure",
            "cache",
            "answer",
            "reply",
            "node",
            "routes",
            "logformat",
            "http",
            "slots",
            "time",
            "wheel",
        ],
    ),
    ("logformat", &[]),
    ("admin", &["VERSION", "cache", "changes", "stats", "node", "http", "time"]),
    ("frontend", &["http", "time"]),
    ("journal", &["changes", "failure", "node", "routes", "time"]),
    ("changes", &["time"]),
    ("fetch", &["failure", "cache", "answer", "http", "routes", "time"]),
    ("cache", &["answer", "failure", "node", "routes", "slots", "stats", "time", "wheel"]),
    ("stats", &["answer", "failure", "routes", "time"]),
    ("node", &["VERSION", "answer", "failure", "http", "routes", "slots", "time"]),
    ("answer", &["http", "time"]),
    ("reply", &["http", "time"]),
    ("failure", &[]),
    ("routes", &["http"]),
    ("http", &["VERSION"]),
    ("slots", &["shrink"]),
    ("wheel", &["shrink", "time"]),
    ("shrink", &[]),
    ("time", &[]),
];

#[test]
fn every_dependency_has_its_reason() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let manifest = fs::read_to_string(manifest).expect("a manifest");
    let mut found = Vec::new();
    let mut reason = false;
    let mut inside = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]");
        } else if inside && line.starts_with('#') {
            reason = true;
        } else if inside && line.contains('=') {
            // two of one family share a reason
            if !reason {
                found.push(line.to_owned());
            }
        } else if line.is_empty() {
            reason = false;
        }
    }
    assert_none("a dependency without a reason", found);
}

#[test]
fn no_path_of_a_private_machine_is_left() {
    let mut found = Vec::new();
    for source in everything().iter().filter(|source| source.name != "tests/tidy.rs") {
        for (at, line) in source.text.lines().enumerate() {
            if ["/home/", "/Users/", "/root/", "/work/"].iter().any(|path| line.contains(path)) {
                found.push(format!("{}:{}: {}", source.name, at + 1, line.trim()));
            }
        }
    }
    assert_none("a path of a private machine", found);
}

/// No word of this list has a place in plain technical English: the subject is a noun, a client or
/// Patroni is it, a number has a name. Without regard to case.
#[test]
fn the_language_is_plain() {
    let words = [
        "who",
        "whoever",
        "whatever",
        "former",
        "he",
        "him",
        "so many",
        "so long",
        "so much",
        "not any more",
        "at the most",
        "behind",
    ];
    let mut found = Vec::new();
    for (name, text) in texts() {
        for (at, line) in text.lines().enumerate() {
            let lower = line.to_lowercase();
            let hits = words.iter().filter(|word| has_word(&lower, word));
            found.extend(hits.map(|word| format!("{name}:{}: {word}", at + 1)));
            let comment = line.trim_start();
            if comment.starts_with("///") && comment.ends_with('?') {
                found.push(format!("{name}:{}: a question as documentation", at + 1));
            }
        }
    }
    assert_none("not plain", found);
}

#[test]
fn names_of_tests_have_a_maximum_length() {
    let mut found = Vec::new();
    for (file, text) in texts() {
        for test in text.split("#[test]\n").skip(1) {
            let name = test.split("fn ").nth(1).and_then(|rest| rest.split('(').next());
            let name = name.unwrap_or_default();
            if name.len() > TEST_NAME_CHARS_MAX {
                found.push(format!("{file}: {name}: {}", name.len()));
            }
        }
    }
    assert_none("too long", found);
}

/// The sources, stories, documents and scripts in [`PLAIN`], without this file, which has the
/// words.
fn texts() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    for name in PLAIN {
        let path = root.join(name);
        assert!(path.exists(), "{name} does not exist");
        collect(&path, &["rs", "c", "txt", "md", "py", "sh", "example", ""], &mut paths);
    }
    paths.sort();
    let named = paths.iter().map(|path| {
        let name = path.strip_prefix(root).expect("below the root").display().to_string();
        (name, fs::read_to_string(path).expect("a text"))
    });
    named.filter(|(name, _)| name != "tests/tidy.rs").collect()
}

/// Files and folders in plain technical English.
const PLAIN: &[&str] = &[
    ".ci",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    "bench",
    "benches",
    "build.sh",
    "config.yml.example",
    "docs",
    "examples",
    "extra",
    "fuzz/README.md",
    "fuzz/fuzz_targets",
    "fuzz/run",
    "src",
    "tests",
];
const LINE_CHARS_MAX: usize = 100;
const TEST_NAME_CHARS_MAX: usize = 60;
const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 600;

#[test]
fn the_documents_match_the_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| fs::read_to_string(root.join(name)).expect("a document");
    assert!(read("README.md").len() <= README_BYTES_MAX, "README.md is over 7 KB");
    let mut missing = Vec::new();
    for document in DOCUMENTS {
        let text = read(document);
        let words = text.split(|char: char| char.is_whitespace() || "`()[]|,;:".contains(char));
        let paths = words.map(|word| word.trim_end_matches('.')).filter(|word| {
            let folder = word.split_once('/').map_or("", |(folder, _)| folder);
            FOLDERS.contains(&folder) && !word.contains(['*', '<'])
        });
        let lost = paths.filter(|path| !root.join(path).exists());
        missing.extend(lost.map(|path| format!("{document}: {path}")));
    }
    let crate_doc = read("src/lib.rs");
    let drawn: Vec<(&str, &str)> = crate_doc
        .lines()
        .filter_map(|line| line.strip_prefix("//!  "))
        .filter_map(|line| Some((line.split_whitespace().next()?, line)))
        .filter(|(name, _)| LAYERS.iter().any(|(module, _)| module == name))
        .collect();
    assert!(drawn.iter().map(|(name, _)| *name).eq(LAYERS.iter().map(|(name, _)| *name)));
    let contributing = read("CONTRIBUTING.md");
    let other = drawn.iter().filter(|(_, line)| !contributing.contains(line));
    missing.extend(other.map(|(_, line)| format!("CONTRIBUTING.md: {line}")));
    assert_none("not there", missing);
}

const README_BYTES_MAX: usize = 7 * 1024;
const DOCUMENTS: [&str; 5] =
    ["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/safety.md", "docs/measurements.md"];
const FOLDERS: [&str; 9] =
    ["src", "tests", "docs", "examples", "bench", "benches", "fuzz", "extra", ".ci"];
