//! The listening sockets of a process: given to it, or bound here.

use std::io;
use std::net::SocketAddr;

use cutover_config::Settings;

use super::error::StartError;
use crate::process::sockets::{Given, Purpose, Socket};

/// All listening sockets.
pub(super) struct Sockets {
    pub(super) admin: Socket,
    pub(super) http: Vec<Socket>,
    pub(super) https: Vec<Socket>,
}

impl Sockets {
    /// Takes from `given` what the settings ask for, and binds the rest.
    ///
    /// # Errors
    /// When an address cannot be bound, or a socket of systemd is not in the settings.
    pub(super) fn open(mut given: Given, settings: &Settings) -> Result<Self, StartError> {
        let mut take = |purpose: Purpose, address: SocketAddr| {
            given
                .take(purpose, address)
                .map_err(|error| StartError::Bind {
                    address,
                    key: purpose.key(),
                    error,
                })
        };
        let listen = &settings.listen;
        let admin = take(Purpose::Admin, settings.admin.address)?;
        let http = listen
            .http
            .iter()
            .map(|address| take(Purpose::Http, *address));
        let http = http.collect::<Result<Vec<_>, _>>()?;
        let https = listen
            .https
            .iter()
            .map(|address| take(Purpose::Https, *address));
        let https = https.collect::<Result<Vec<_>, _>>()?;
        let unused = given.unused();
        if !unused.is_empty() {
            return Err(StartError::Unused { addresses: unused });
        }
        Ok(Self { admin, http, https })
    }

    /// Returns the addresses with the real ports: without TLS, with TLS, and of the admin port.
    ///
    /// # Errors
    /// When the system does not tell an address.
    pub(super) fn addresses(&self) -> io::Result<(Vec<SocketAddr>, Vec<SocketAddr>, SocketAddr)> {
        let addresses = |sockets: &[Socket]| {
            sockets
                .iter()
                .map(|socket| socket.listener.local_addr())
                .collect::<io::Result<Vec<_>>>()
        };
        Ok((
            addresses(&self.http)?,
            addresses(&self.https)?,
            self.admin.listener.local_addr()?,
        ))
    }

    /// Returns all sockets, to be handed over to the next process.
    pub(super) fn into_all(self) -> Vec<Socket> {
        std::iter::once(self.admin)
            .chain(self.http)
            .chain(self.https)
            .collect()
    }
}
