//! One TLS session: records in and out, by rustls' unbuffered interface.
//!
//! Touches no socket. An idle session owns no buffer: data passes through the loop's buffers, and
//! only incomplete records and records that the socket did not take are kept here.

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic,
};
use rustls::{Error, HandshakeKind, InvalidMessage};

use super::config::{ClientSide, ServerSide};
use super::error::{Peer, TlsError};
use crate::stats::Handshake;

/// One TLS connection.
pub struct Session {
    side: Side,
    /// Incomplete records, or an incomplete handshake message.
    incoming: Vec<u8>,
    incoming_bytes_max: usize,
    /// Records to send. Owns no memory while it is empty.
    outgoing: Vec<u8>,
    /// The peer sent close_notify.
    peer_closed: bool,
    /// A record of the peer was valid. Before that, data that is not TLS is taken for plain HTTP.
    has_received: bool,
    /// Set once the session failed. rustls must not be called again: it would expect records that
    /// are gone.
    failed: Option<Box<TlsError>>,
}

enum Side {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// Outcome of one call of rustls.
enum Step {
    /// Call again.
    Again,
    /// The peer sent close_notify; call again.
    PeerClosed,
    /// Needs more records.
    Wait,
    Failed(Error),
}

impl Session {
    /// A session with a client.
    pub fn server(config: &ServerSide) -> Result<Session, TlsError> {
        let connection = UnbufferedServerConnection::new(config.config.clone());
        let connection = connection.map_err(|error| TlsError::of(&error, Peer::Client))?;
        let incoming_bytes_max =
            if config.wants_certificates { CHAIN_BYTES_MAX } else { RECORD_BYTES_MAX };
        Ok(Session::new(Side::Server(connection), incoming_bytes_max))
    }

    /// A session with an upstream's host; its first records are ready to send.
    pub fn client(config: &ClientSide, host: &str) -> Result<Session, TlsError> {
        let name = config.name(host).ok_or_else(|| TlsError::no_name(host))?;
        let connection = UnbufferedClientConnection::new(config.config.clone(), name);
        let connection = connection.map_err(|error| TlsError::of(&error, Peer::Server))?;
        let mut session = Session::new(Side::Client(connection), CHAIN_BYTES_MAX);
        session.receive(&mut [], &mut Vec::new())?;
        Ok(session)
    }

    fn new(side: Side, incoming_bytes_max: usize) -> Session {
        Session {
            side,
            incoming: Vec::new(),
            incoming_bytes_max,
            outgoing: Vec::new(),
            peer_closed: false,
            has_received: false,
            failed: None,
        }
    }

    /// Decrypts received records in place and appends their content to `plain`. After an error an
    /// alert may be ready to send.
    pub fn receive(&mut self, records: &mut [u8], plain: &mut Vec<u8>) -> Result<(), TlsError> {
        self.check()?;
        let mut kept = std::mem::take(&mut self.incoming);
        let view = if kept.is_empty() {
            records
        } else {
            kept.extend_from_slice(records);
            &mut kept[..]
        };
        let mut used = 0;
        loop {
            let (discard, step) = self.side.step(&mut view[used..], plain, &mut self.outgoing);
            used += discard;
            self.has_received |= discard > 0;
            match step {
                Step::Again => {}
                Step::PeerClosed => self.peer_closed = true,
                Step::Wait => break,
                Step::Failed(error) => {
                    let error = match error {
                        Error::InvalidMessage(InvalidMessage::InvalidContentType)
                            if !self.has_received =>
                        {
                            TlsError::not_tls(&view[used..])
                        }
                        error => TlsError::of(&error, self.side.peer()),
                    };
                    self.side.encode_alert(&mut view[used..], &mut self.outgoing);
                    return Err(self.fail(error));
                }
            }
        }
        if used < view.len() {
            if view.len() - used > self.incoming_bytes_max {
                let error = TlsError::of(&Error::PeerSentOversizedRecord, self.side.peer());
                return Err(self.fail(error));
            }
            self.incoming = view[used..].to_vec();
        }
        Ok(())
    }

    /// Encrypts `plain` into records to send.
    pub fn encrypt(&mut self, plain: &[u8]) -> Result<(), TlsError> {
        self.check()?;
        self.side.write(&mut self.incoming, &mut self.outgoing, |outgoing, traffic| {
            append(outgoing, |buffer| Ok(traffic.encrypt(plain, buffer)?))
        })
    }

    /// Queues close_notify: nothing follows from this side.
    pub fn close_notify(&mut self) {
        if self.failed.is_some() {
            return;
        }
        // fails before the handshake is complete, when no close_notify is due
        let _ = self.side.write(&mut self.incoming, &mut self.outgoing, |outgoing, traffic| {
            append(outgoing, |buffer| Ok(traffic.queue_close_notify(buffer)?))
        });
    }

    /// Takes the records to send; the caller [returns](Self::unsent) what the socket did not take.
    pub fn take_outgoing(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.outgoing)
    }

    /// Returns the records that the socket did not take.
    pub fn unsent(&mut self, records: Vec<u8>) {
        debug_assert!(self.outgoing.is_empty());
        self.outgoing = records;
    }

    /// Whether there are records to send.
    pub fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether the handshake is incomplete.
    pub fn is_handshaking(&self) -> bool {
        match &self.side {
            Side::Server(connection) => connection.is_handshaking(),
            Side::Client(connection) => connection.is_handshaking(),
        }
    }

    /// How the handshake ended, once it has.
    pub fn handshake(&self) -> Option<Handshake> {
        let kind = match &self.side {
            Side::Server(connection) => connection.handshake_kind(),
            Side::Client(connection) => connection.handshake_kind(),
        };
        kind.map(|kind| match kind {
            HandshakeKind::Resumed => Handshake::Resumed,
            HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest => Handshake::Full,
        })
    }

    /// Whether the peer sent close_notify. An end without it is a cut.
    pub fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    #[cfg(test)]
    pub(in crate::shell) fn buffered_bytes(&self) -> usize {
        self.incoming.capacity() + self.outgoing.capacity()
    }

    fn fail(&mut self, error: TlsError) -> TlsError {
        self.failed = Some(Box::new(error.clone()));
        error
    }

    fn check(&self) -> Result<(), TlsError> {
        self.failed.as_ref().map_or(Ok(()), |error| Err(TlsError::clone(error)))
    }
}

impl Side {
    fn peer(&self) -> Peer {
        match self {
            Side::Server(_) => Peer::Client,
            Side::Client(_) => Peer::Server,
        }
    }

    fn step(
        &mut self,
        records: &mut [u8],
        plain: &mut Vec<u8>,
        outgoing: &mut Vec<u8>,
    ) -> (usize, Step) {
        match self {
            Side::Server(connection) => {
                step(connection.process_tls_records(records), plain, outgoing)
            }
            Side::Client(connection) => {
                step(connection.process_tls_records(records), plain, outgoing)
            }
        }
    }

    /// Encodes the alert after an error. `records` are those not discarded before: rustls
    /// remembers how many of their bytes it has processed, and panics if they are missing. Stops
    /// after the alert: rustls would process the records again and add a second alert.
    fn encode_alert(&mut self, records: &mut [u8], outgoing: &mut Vec<u8>) {
        let mut used = 0;
        loop {
            let before = outgoing.len();
            let (discard, step) = self.step(&mut records[used..], &mut Vec::new(), outgoing);
            used += discard;
            let record = &outgoing[before..];
            if !matches!(step, Step::Again) || record.is_empty() || is_alert(record) {
                return;
            }
        }
    }

    /// Calls `write` where rustls lets traffic be written.
    fn write(
        &mut self,
        incoming: &mut [u8],
        outgoing: &mut Vec<u8>,
        write: impl FnMut(&mut Vec<u8>, &mut dyn Traffic) -> Result<(), Error>,
    ) -> Result<(), TlsError> {
        let outcome = match self {
            Side::Server(connection) => {
                write_traffic(connection.process_tls_records(incoming), outgoing, write)
            }
            Side::Client(connection) => {
                write_traffic(connection.process_tls_records(incoming), outgoing, write)
            }
        };
        outcome.map_err(|error| TlsError::of(&error, self.peer()))
    }
}

/// Whether a record is an alert, by its type or, where TLS 1.3 hides the type, by its length, which
/// no other record has.
fn is_alert(record: &[u8]) -> bool {
    record[0] == ALERT_TYPE || record.len() == ALERT_BYTES_ENCRYPTED
}

/// `WriteTraffic` of either side.
trait Traffic {
    fn encrypt(&mut self, plain: &[u8], records: &mut [u8]) -> Result<usize, EncryptError>;
    fn queue_close_notify(&mut self, records: &mut [u8]) -> Result<usize, EncryptError>;
}

impl<Data> Traffic for WriteTraffic<'_, Data> {
    fn encrypt(&mut self, plain: &[u8], records: &mut [u8]) -> Result<usize, EncryptError> {
        WriteTraffic::encrypt(self, plain, records)
    }

    fn queue_close_notify(&mut self, records: &mut [u8]) -> Result<usize, EncryptError> {
        WriteTraffic::queue_close_notify(self, records)
    }
}

/// Handles one status of either side. Records to transmit are in `outgoing`, which the stream
/// sends before it reads again.
fn step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    plain: &mut Vec<u8>,
    outgoing: &mut Vec<u8>,
) -> (usize, Step) {
    let UnbufferedStatus { mut discard, state } = status;
    let step = match state {
        Ok(ConnectionState::ReadTraffic(mut traffic)) => {
            while let Some(record) = traffic.next_record() {
                match record {
                    Ok(record) => {
                        plain.extend_from_slice(record.payload);
                        discard += record.discard;
                    }
                    Err(error) => return (discard, Step::Failed(error)),
                }
            }
            Step::Again
        }
        Ok(ConnectionState::EncodeTlsData(data)) => match encode(data, outgoing) {
            Ok(()) => Step::Again,
            Err(error) => Step::Failed(error),
        },
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Step::Again
        }
        Ok(ConnectionState::PeerClosed) => Step::PeerClosed,
        Ok(_) => Step::Wait,
        Err(error) => Step::Failed(error),
    };
    (discard, step)
}

fn encode<Data>(mut data: EncodeTlsData<'_, Data>, outgoing: &mut Vec<u8>) -> Result<(), Error> {
    append(outgoing, |buffer| Ok(data.encode(buffer)?))
}

fn write_traffic<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    outgoing: &mut Vec<u8>,
    mut write: impl FnMut(&mut Vec<u8>, &mut dyn Traffic) -> Result<(), Error>,
) -> Result<(), Error> {
    debug_assert_eq!(status.discard, 0, "all complete records were received before");
    match status.state? {
        ConnectionState::WriteTraffic(mut traffic) => write(outgoing, &mut traffic),
        ConnectionState::TransmitTlsData(mut data) => match data.may_encrypt_app_data() {
            Some(mut traffic) => write(outgoing, &mut traffic),
            None => Err(Error::HandshakeNotComplete),
        },
        _ => Err(Error::HandshakeNotComplete),
    }
}

/// Why rustls wrote nothing to a buffer.
enum WriteError {
    /// The buffer is too small: this size is needed.
    NeedsBytes(usize),
    Failed(Error),
}

impl From<EncryptError> for WriteError {
    fn from(error: EncryptError) -> WriteError {
        match error {
            EncryptError::InsufficientSize(size) => WriteError::NeedsBytes(size.required_size),
            EncryptError::EncryptExhausted => WriteError::Failed(Error::EncryptError),
        }
    }
}

impl From<EncodeError> for WriteError {
    fn from(error: EncodeError) -> WriteError {
        match error {
            EncodeError::InsufficientSize(size) => WriteError::NeedsBytes(size.required_size),
            EncodeError::AlreadyEncoded => {
                WriteError::Failed(Error::General("encoded twice".into()))
            }
        }
    }
}

/// Appends the output of `write` to `outgoing`: the first call has no room and returns the size.
fn append(
    outgoing: &mut Vec<u8>,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, WriteError>,
) -> Result<(), Error> {
    let start = outgoing.len();
    loop {
        match write(&mut outgoing[start..]) {
            Ok(count) => {
                outgoing.truncate(start + count);
                return Ok(());
            }
            Err(WriteError::NeedsBytes(bytes)) if bytes > outgoing.len() - start => {
                outgoing.resize(start + bytes, 0);
            }
            Err(WriteError::NeedsBytes(_)) => return Err(Error::EncryptError),
            Err(WriteError::Failed(error)) => return Err(error),
        }
    }
}

/// With certificates of the peer: a handshake message has up to 64 KiB (rustls' own limit), and
/// an incomplete record may follow it.
const CHAIN_BYTES_MAX: usize = 96 * 1024;
/// Without certificates of the peer: a record has up to 16 KiB and its head and tag, and no other
/// message of a client is longer. Any client that can connect may occupy this much.
const RECORD_BYTES_MAX: usize = 20 * 1024;
/// RFC 8446, section 5.1.
const ALERT_TYPE: u8 = 21;
/// Header, level and description, type, tag (RFC 8446, section 5.2).
const ALERT_BYTES_ENCRYPTED: usize = 5 + 2 + 1 + 16;
