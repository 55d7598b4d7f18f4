//! Guards on the cost of a check, as counts of the release binary compared with `limits.txt`.
//!
//! `cargo bench --bench guards` runs all; words select guards by their names; `table` prints the
//! table of limits with current values instead of a comparison. Needs valgrind and strace, Linux
//! and loopback. Counts need no quiet machine.

#[path = "../../tests/common/mod.rs"]
mod common;
mod limits;
mod measure;
#[path = "../../tests/binary/tls_support/mod.rs"]
mod tls_support;

use std::process::{Command, ExitCode};

use limits::{Guard, Limits, Verdict};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let prints_table = words.iter().any(|word| word == "table");
    let wanted: Vec<&String> = words.iter().filter(|word| *word != "table").collect();
    let is_wanted =
        |name: &str| wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str()));
    let limits = Limits::read(include_str!("limits.txt"));
    let provider = measure::provider();
    let measured = measured();
    let mut fails = false;
    for (names, run) in measure::ALL {
        if !names.iter().any(|name| is_wanted(name)) {
            continue;
        }
        let Some(values) = run() else {
            let is_ci = std::env::var("CI").is_ok_and(|value| value == "true");
            let outcome = if is_ci { "FAILED" } else { "skipped" };
            println!(
                "{}: {outcome}: valgrind, strace or descriptors are missing",
                names.join(", ")
            );
            fails |= is_ci;
            continue;
        };
        for (name, value) in names.iter().zip(values) {
            let guard = Guard::of(name);
            if prints_table {
                println!("{}", guard.row(value, provider, &measured));
                continue;
            }
            let verdict = limits.judge(&guard, value, provider);
            println!("{verdict}");
            fails |= LIMITS_HOLD && matches!(verdict, Verdict::Worse(_) | Verdict::Unlimited(_));
        }
    }
    if fails && !prints_table {
        println!("the limits are in benches/guards/limits.txt; this build: {measured}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// The day, the compiler and the C library, on which instructions and sizes depend.
fn measured() -> String {
    let rustc = first_line("rustc", "-V");
    let rustc = rustc.split(' ').nth(1).unwrap_or_default();
    let libc = first_line("getconf", "GNU_LIBC_VERSION");
    format!("{}, rustc {rustc}, {libc}", first_line("date", "-u +%F"))
}

/// The first line that a command prints.
fn first_line(command: &str, arguments: &str) -> String {
    let output = Command::new(command).args(arguments.split(' ')).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

/// Other machines have other instructions, and another C library has another allocator: there the
/// comparison is printed, and nothing fails.
const LIMITS_HOLD: bool = cfg!(all(target_arch = "x86_64", target_env = "gnu"));
