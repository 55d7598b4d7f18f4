//! Flags, configuration, logger, daemon, exit code. No logic.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use log::LevelFilter;
use patroniglue::http::write::VERSION;
use patroniglue::shell::{Daemon, Options, files, logger};

fn main() -> ExitCode {
    let flags = match Flags::parse(std::env::args_os().skip(1)) {
        Ok(flags) => flags,
        Err(error) => {
            logger::say(&format!("{error}\n{USAGE}"));
            return ExitCode::from(2);
        }
    };
    match run(flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::logger().flush();
            logger::say(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(flags: Flags) -> Result<(), String> {
    if flags.help {
        return print(USAGE);
    }
    if flags.version {
        return print(&format!("patroniglue {VERSION}"));
    }
    let config_file = flags.config.or_else(default_config_file);
    let config_file = config_file.ok_or("-config is missing, and so is $HOME")?;
    let (config, tls) = files::read_config(&config_file)?;
    if flags.check {
        return print("OK");
    }
    logger::start(flags.level).map_err(|error| format!("log: {error}"))?;
    let options = Options { config_file: Some(config_file), verbose: flags.verbose, signals: true };
    let outcome = Daemon::with_tls(config, tls, options)?.run();
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
    verbose: bool,
    level: LevelFilter,
    version: bool,
    help: bool,
}

impl Flags {
    fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Flags, String> {
        let mut arguments = pico_args::Arguments::from_vec(two_dashes(arguments));
        let help = arguments.contains("--help") | arguments.contains("--h");
        let config = arguments
            .opt_value_from_os_str("--config", |text| Ok::<PathBuf, String>(PathBuf::from(text)));
        let verbose = arguments.contains("--verbose");
        let debug = arguments.contains("--debug");
        let quiet = arguments.contains("--quiet");
        let flags = Flags {
            config: config.map_err(|error| error.to_string())?,
            check: arguments.contains("--check"),
            verbose: verbose && !quiet,
            level: match (debug, quiet) {
                (true, _) => LevelFilter::Debug,
                (false, true) => LevelFilter::Error,
                (false, false) => LevelFilter::Info,
            },
            version: arguments.contains("--version"),
            help,
        };
        match arguments.finish().first() {
            Some(unknown) => Err(format!("unknown argument: {}", unknown.to_string_lossy())),
            None => Ok(flags),
        }
    }
}

/// Go's flag package takes `-x` for `--x`, `-x=FILE` for `-x FILE` and `-x=true` for a switch;
/// pico-args would take the first for a bundle of short ones. The file behind `-config` is left
/// as it is.
fn two_dashes(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut rewritten: Vec<OsString> = Vec::new();
    for argument in arguments {
        let is_value = rewritten.last().is_some_and(|former| former == "--config");
        let flag = argument.to_str().filter(|text| !is_value && text.len() > 1);
        let name = flag.and_then(|text| text.strip_prefix("--").or(text.strip_prefix('-')));
        match name.map(|name| name.split_once('=').unwrap_or((name, ""))) {
            None => rewritten.push(argument),
            Some((_, "false")) => {}
            Some((name, "" | "true")) => rewritten.push(format!("--{name}").into()),
            Some((name, value)) => rewritten.extend([format!("--{name}").into(), value.into()]),
        }
    }
    rewritten
}

const USAGE: &str = "\
usage: patroniglue [-config FILE] [-check] [-verbose | -debug | -quiet]

  -config FILE  configuration (default: $HOME/.patroniglue.yml)
  -check        read the configuration and every file it names, say OK, and end
  -verbose      log a line per request
  -debug        log more of what happens inside
  -quiet        log errors only
  -version      print the version
  -help         print this";
