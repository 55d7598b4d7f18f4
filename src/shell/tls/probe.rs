//! One request to a TLS listener of our own, for `-health`.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Error, StreamOwned};

use super::provider::cryptography;
use super::verify::Unchecked;

/// Sends a request and returns the beginning of the response. The certificate is not verified: it
/// need not be for the address that is asked. A listener that requires client certificates ends the
/// handshake with an alert, which is a sign of life as well: `None`.
pub fn ask_over_tls(socket: TcpStream, request: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let builder = ClientConfig::builder_with_provider(Arc::new(cryptography()));
    let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?;
    let verifier = Arc::new(Unchecked);
    let config = builder.dangerous().with_custom_certificate_verifier(verifier);
    let config = Arc::new(config.with_no_client_auth());
    let name = ServerName::from(socket.peer_addr()?.ip());
    let session = ClientConnection::new(config, name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(session, socket);
    let mut response = vec![0; RESPONSE_BYTES_MAX];
    let outcome = stream.write_all(request).and_then(|()| stream.read(&mut response));
    match outcome {
        Ok(length) => Ok(Some(response[..length].to_vec())),
        Err(error) if is_alert(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_alert(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    matches!(inner, Some(Error::AlertReceived(_)))
}

/// Enough for the status line.
const RESPONSE_BYTES_MAX: usize = 1024;
