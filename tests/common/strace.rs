//! The daemon's system calls, by strace.

use std::fs;
use std::process::{Command, Stdio};

use super::{Glue, wait_for};

/// A line per system call of the daemon while `work` ran. `None`: strace is not installed or may
/// not trace, and `work` did not run.
pub fn trace(glue: &Glue, work: impl FnOnce()) -> Option<String> {
    let output = glue.config.with_extension("strace");
    let id = glue.process_id().to_string();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-p", &id, "-o"]).arg(&output);
    let strace = strace.stdin(Stdio::null()).stderr(Stdio::null()).spawn();
    let traced = || {
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
    };
    let attached = strace.ok().and_then(|mut strace| {
        let attached = wait_for("strace", || match strace.try_wait() {
            Ok(None) => traced().then_some(true),
            _ => Some(false),
        });
        attached.then_some(strace)
    });
    let Some(mut strace) = attached else {
        assert!(std::env::var_os("CI").is_none(), "CI has strace");
        eprintln!("skipped: strace is not installed, or may not trace");
        return None;
    };
    work();
    let _ = Command::new("kill").args(["-s", "INT", &strace.id().to_string()]).status();
    let _ = strace.wait();
    let text = fs::read_to_string(&output).ok()?;
    let _ = fs::remove_file(&output);
    Some(text)
}

/// `sendto` of `4711  sendto(7, ...) = 81`.
pub fn name_of_call(line: &str) -> Option<&str> {
    line.split_whitespace().nth(1)?.split('(').next()
}
