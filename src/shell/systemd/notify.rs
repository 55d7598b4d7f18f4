//! Datagrams to `$NOTIFY_SOCKET` (sd_notify(3)).

use std::env;
use std::ffi::OsStr;
use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::Duration;

use rustix::net::{
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg_addr,
};

/// Sends datagrams; without a socket it sends nothing.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddrUnix)>,
}

impl Notifier {
    /// Notifies the socket that `$NOTIFY_SOCKET` names, if it is set.
    pub fn from_environment() -> Notifier {
        let path = env::var_os("NOTIFY_SOCKET");
        Notifier { socket: path.and_then(|path| Notifier::socket(&path).ok()) }
    }

    /// Sends lines of `KEY=value`, if the socket takes them at once.
    pub fn send(&self, lines: &str) {
        self.send_with(lines, &mut SendAncillaryBuffer::default());
    }

    /// Puts a descriptor into the store.
    pub fn store(&self, name: &str, descriptor: &impl AsFd) {
        self.send_descriptor(&format!("FDSTORE=1\nFDNAME={name}"), descriptor);
    }

    /// Waits until all previous datagrams are read, at most [`BARRIER_TIMEOUT`]: the supervisor
    /// then closes the descriptor of this one (sd_notify_barrier(3)).
    pub fn wait_until_read(&self) {
        if self.socket.is_none() {
            return;
        }
        let Ok((mut ours, theirs)) = UnixStream::pair() else { return };
        self.send_descriptor("BARRIER=1", &theirs);
        drop(theirs);
        let _ = ours.set_read_timeout(Some(BARRIER_TIMEOUT)).and_then(|()| ours.read(&mut [0]));
    }

    fn send_descriptor(&self, lines: &str, descriptor: &impl AsFd) {
        let descriptors = [descriptor.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            self.send_with(lines, &mut control);
        }
    }

    /// Not connected: a supervisor that started again has another socket at the same address.
    fn socket(path: &OsStr) -> io::Result<(UnixDatagram, SocketAddrUnix)> {
        let address = match path.as_bytes() {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
            _ => SocketAddrUnix::new(path)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok((socket, address))
    }

    fn send_with(&self, lines: &str, control: &mut SendAncillaryBuffer<'_, '_, '_>) {
        if let Some((socket, address)) = &self.socket {
            let lines = [IoSlice::new(lines.as_bytes())];
            let _ = sendmsg_addr(socket, address, &lines, control, SendFlags::NOSIGNAL);
        }
    }
}

/// systemd reads within milliseconds.
const BARRIER_TIMEOUT: Duration = Duration::from_millis(500);
