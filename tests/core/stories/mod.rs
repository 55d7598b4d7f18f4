//! Stories in virtual time: reads `*.txt` of this folder and plays each against the engine alone.
//!
//! A story is a list of sentences, one event or one expectation each; `script.rs` documents them.
//! All consequences of an event have to be expected before the next event, or the story fails.
//! Every story is played three times: its bytes in one piece, one by one, and in sevens.

pub mod etcd;
mod player;
mod script;
mod world;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::{fs, io};

use script::Story;

#[test]
fn every_story_holds() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/core/stories");
    let mut failures = Vec::new();
    let mut titles = BTreeSet::new();
    for (file, text) in files(&directory) {
        match script::stories(&file, &text) {
            Err(error) => failures.push(error),
            Ok(stories) => {
                for story in stories {
                    failures.extend(play(&story).err());
                    if !titles.insert(story.title.clone()) {
                        failures.push(format!("{file}: two stories called {:?}", story.title));
                    }
                }
            }
        }
    }
    // to stderr directly: the harness does not show the output of a passing test
    let _ = writeln!(io::stderr(), "{} stories, each in {} splits", titles.len(), SPLITS.len());
    assert!(failures.is_empty(), "{} failed\n\n{}\n", failures.len(), failures.join("\n\n"));
    assert!(titles.len() >= STORIES_MIN, "only {} stories were found", titles.len());
}

/// Each of these wrong stories has to fail, for its reason.
#[test]
fn a_wrong_story_fails_with_its_line() {
    let table = [
        ("A connects\nA asks GET /x HTTP/1.1\n", "A has a 404"),
        ("A connects\nA asks GET /x HTTP/1.1\nA gets 200\n", "A got 404"),
        ("A connects\nA asks GET /x HTTP/1.1\nA gets 404\n  Age: 0\n", "there is no Age"),
        ("A connects\nA asks GET /x HTTP/1.1\nA gets 404\n  no Date\n", "Date: Sun, 06 Nov"),
        ("A connects\nA asks GET /x HTTP/1.1\nA gets 404\n  empty body\n", "the body is"),
        ("A connects\nA asks GET / HTTP/1.1\n5 s pass\n", "Patroni was asked for /"),
        ("Patroni is asked for /\n", "Patroni was not asked"),
        ("A connects\nA asks GET / HTTP/1.1\nPatroni is asked for /leader\n", "asked for /"),
        ("A connects\n5 s pass\n", "A was closed"),
        ("A connects\nA is closed\n", "nothing happened to A"),
        ("A connects\nthere are 2 clients\n", "there are 1 clients"),
        ("A connects\nA asks GET /x HTTP/1.0\nA gets 404\n", "A was closed"),
        ("A sends \"x\"\n", "there is no A"),
        ("A dances\n", "not understood"),
        ("A connects\nA sends \"\\q\"\n", "not understood"),
        ("tll 1 s\n", "not understood"),
        ("given a leader\n", "not understood"),
        ("## Given a client\nA connects\n", "no story is given a client"),
        ("## Given B\nB connects\n## wrong 2\ngiven B\n5 s pass\n", "B was closed"),
    ];
    for (text, why) in table {
        let outcome = script::stories("wrong.txt", &format!("## wrong\n{text}"));
        let last = |stories: Vec<Story>| play(stories.last().expect("a story"));
        let error = outcome.and_then(last).expect_err(text);
        assert!(error.starts_with("wrong.txt:") && error.contains(why), "{text}\n{error}");
    }
}

#[test]
fn the_language_is_documented_as_it_is_parsed() {
    let source = include_str!("script.rs");
    let fenced = source.split("```").nth(1).expect("a fenced text").trim_start_matches("text");
    let documented = fenced.replace("\n//! ", "\n").replace("\n//!", "\n");
    script::stories("script.rs", &documented).expect("every documented sentence is parsed");
    let parser = source.split("fn setting").nth(1).expect("a parser").lines();
    let parser = parser.take_while(|line| !line.contains("fn request")).filter(|line| {
        ["strip_", "split_once(\"", "=>", "==", ".or("].iter().any(|way| line.contains(way))
    });
    // every second part of a line split at quotes is a literal
    let literals = parser.flat_map(|line| line.split('"').skip(1).step_by(2));
    for sentence in literals.filter(|text| !text.contains(['{', '\\'])) {
        assert!(documented.contains(sentence), "not documented: {sentence:?}");
    }
}

/// All `*.txt` of a directory, in the order of their names.
fn files(directory: &Path) -> Vec<(String, String)> {
    let entries = fs::read_dir(directory).expect("tests/core/stories can be listed");
    let paths = entries.map(|entry| entry.expect("an entry can be read").path());
    let mut paths: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|end| end == "txt")).collect();
    paths.sort();
    let named = |path: &std::path::PathBuf| {
        let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
        let text = fs::read_to_string(path).expect("a story can be read");
        (name, text)
    };
    paths.iter().map(named).collect()
}

fn play(story: &Story) -> Result<(), String> {
    let splits = if story.splits { &SPLITS[..] } else { &SPLITS[..1] };
    for &(piece_bytes, split) in splits {
        player::play(story, piece_bytes).map_err(|(line, why)| {
            format!("{}:{line}: {:?} {split}: {why}", story.file, story.title)
        })?;
    }
    Ok(())
}

/// The maximum of bytes of one read or write.
const SPLITS: [(usize, &str); 3] =
    [(16 * 1024, "in one piece"), (1, "byte by byte"), (7, "in sevens")];
/// With fewer, some files were not found.
const STORIES_MIN: usize = 45;
