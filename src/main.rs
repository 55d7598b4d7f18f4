//! Flags, configuration, logger, daemon, exit code.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

use log::LevelFilter;
use patroniglue::VERSION;
use patroniglue::shell::systemd::Supervisor;
use patroniglue::shell::tls::PROVIDER;
use patroniglue::shell::{Daemon, Options, files, health, hosts, logger};

fn main() -> ExitCode {
    let flags = match Flags::parse(std::env::args_os().skip(1)) {
        Ok(flags) => flags,
        Err(error) => {
            logger::print_line(&format!("{error}\n{USAGE}"));
            return ExitCode::from(2);
        }
    };
    match run(flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::logger().flush();
            logger::print_line(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(flags: Flags) -> Result<(), String> {
    if flags.help {
        return print(USAGE);
    }
    if flags.version {
        return print(&format!("patroniglue {VERSION} ({})", PROVIDER.name));
    }
    let supervisor = Supervisor::from_environment();
    let config_file = flags
        .config
        .or_else(default_config_file)
        .ok_or("no configuration file: $HOME is not set; add -config FILE")?;
    let loaded = files::read_config(&config_file)?;
    if flags.health {
        return health::ask(&loaded.config);
    }
    if flags.check {
        let hosts = hosts::warnings(&loaded.config);
        for warning in loaded.warnings().chain(&hosts) {
            logger::print_line(warning);
        }
        return print("OK");
    }
    logger::start(flags.level).map_err(|error| format!("log: {error}"))?;
    let options = Options {
        config_file: Some(config_file),
        verbose: flags.verbose,
        signals: true,
        look_every: None,
    };
    let outcome = Daemon::with_loaded(loaded, options, supervisor)?.run();
    log::logger().flush();
    outcome.map_err(|error| error.to_string())
}

fn print(text: &str) -> Result<(), String> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{text}").map_err(|error| error.to_string())
}

fn default_config_file() -> Option<PathBuf> {
    Some(PathBuf::from(std::env::var_os("HOME")?).join(".patroniglue.yml"))
}

struct Flags {
    config: Option<PathBuf>,
    check: bool,
    health: bool,
    verbose: bool,
    level: LevelFilter,
    version: bool,
    help: bool,
}

impl Flags {
    fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Flags, String> {
        let mut arguments = pico_args::Arguments::from_vec(two_dashes(arguments));
        let help = arguments.contains("--help");
        let h = arguments.contains("--h");
        let config = arguments
            .opt_value_from_os_str("--config", |text| Ok::<PathBuf, String>(PathBuf::from(text)))
            .map_err(|error| error.to_string())?;
        let verbose = arguments.contains("--verbose");
        let debug = arguments.contains("--debug");
        let quiet = arguments.contains("--quiet");
        let flags = Flags {
            config,
            check: arguments.contains("--check"),
            health: arguments.contains("--health"),
            verbose: verbose && !quiet,
            level: match (quiet, debug) {
                (true, _) => LevelFilter::Error,
                (false, true) => LevelFilter::Debug,
                (false, false) => LevelFilter::Info,
            },
            version: arguments.contains("--version"),
            help: help || h,
        };
        match arguments.finish().first() {
            Some(unknown) => Err(format!("unknown argument: {}", unknown.to_string_lossy())),
            None => Ok(flags),
        }
    }
}

/// Converts flags as Go's flag package accepts them to what pico-args accepts: `-x` to `--x`,
/// `-x=FILE` to `--x FILE`, a switch with a value to the switch or nothing. Of a repeated flag the
/// last one counts.
fn two_dashes(mut arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut normalized: Vec<OsString> = Vec::new();
    let mut config = Vec::new();
    while let Some(argument) = arguments.next() {
        let bytes = argument.as_bytes();
        let flag = bytes.strip_prefix(b"--").or(bytes.strip_prefix(b"-")).unwrap_or_default();
        let (name, value) = match flag.iter().position(|byte| *byte == b'=') {
            Some(at) => (&flag[..at], Some(OsStr::from_bytes(&flag[at + 1..]))),
            None => (flag, None),
        };
        let name = std::str::from_utf8(name).unwrap_or_default();
        let is_on = match SWITCHES.contains(&name) {
            true => parse_bool(value.unwrap_or("true".as_ref())),
            false => None,
        };
        if name == "config" {
            config = vec!["--config".into()];
            if let Some(file) = value.map(OsString::from).or_else(|| arguments.next()) {
                config.push(file);
            }
        } else if let Some(is_on) = is_on {
            let switch = OsString::from(format!("--{name}"));
            normalized.retain(|earlier| *earlier != switch);
            if is_on {
                normalized.push(switch);
            }
        } else {
            normalized.push(argument);
        }
    }
    normalized.extend(config);
    normalized
}

/// Accepts the same spellings as Go's `strconv.ParseBool`.
fn parse_bool(text: &OsStr) -> Option<bool> {
    match text.to_str() {
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Some(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Some(false),
        _ => None,
    }
}

const SWITCHES: [&str; 8] =
    ["check", "health", "verbose", "debug", "quiet", "version", "help", "h"];

const USAGE: &str = "\
usage: patroniglue [-config FILE] [-check | -health] [-verbose | -debug | -quiet]

  -config FILE  configuration file (default: $HOME/.patroniglue.yml)
  -check        check the configuration and every file it names, print OK, and exit
  -health       ask the daemon that runs with this configuration, and exit with 0 if it
                answers, also while Patroni is silent, or with 1
  -verbose      log a line per request
  -debug        log internal events as well
  -quiet        log errors only
  -version      print the version and the TLS provider, and exit
  -help         print this text and exit";
