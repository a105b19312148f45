//! The contracts' stages, as the fake world has them.

use super::tcp::SEND_BUFFER;
use super::*;
use crate::backend::Descriptor;
use crate::backend::contract::{self, contract_tests};
use crate::tcp::Tcp as _;

/// A descriptor by its number.
pub(super) struct Number(pub RawFd);

impl Descriptor for Number {
    fn number(&self) -> RawFd {
        self.0
    }
}

pub(super) fn number(of: &impl Descriptor) -> Number {
    Number(of.number())
}

/// One kernel and one process. Whoever leaves it has done nothing that no contract allows.
struct Stage {
    kernel: Kernel,
    process: Process,
}

impl Stage {
    fn new(flavour: Flavour) -> Self {
        let kernel = Kernel::new(1, flavour);
        let process = kernel.process(4096);
        Stage { kernel, process }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.kernel.violations(), [""; 0]);
        }
    }
}

struct Pair {
    near: Socket,
    held: Held,
    client: Client,
    filled: u64,
}

impl contract::Stage for Stage {
    type Backend = Backend;
    type Pair = Pair;

    fn backend(&mut self) -> Backend {
        self.process.backend()
    }

    fn pair(&mut self) -> Pair {
        let (client, held) = self.kernel.connection(&Setup { response: 0, reads: false, ..Setup::default() });
        let near = Socket::of(self.process.inherit(&held)).ok().unwrap();
        Pair { near, held, client, filled: 0 }
    }

    fn local_pair(&mut self) -> Pair {
        self.pair()
    }

    fn send_later(&mut self, pair: &Pair) {
        let client = pair.client.clone();
        self.kernel.after(Duration::from_secs(1), move |_| client.send(1));
    }

    fn now(&self) -> Duration {
        self.kernel.now()
    }
}

impl contract::Pair for Pair {
    fn near(&self) -> impl Descriptor {
        number(&self.near)
    }

    fn send(&mut self) {
        self.client.send(1);
    }

    fn drain(&mut self) {
        while self.near.discard().is_ok() {}
    }

    fn fill(&mut self) {
        let bytes = SEND_BUFFER + Setup::default().client_window;
        self.held.write(bytes);
        self.filled += bytes;
    }

    fn make_room(&mut self) {
        while self.filled > 0 {
            self.filled -= self.client.read(self.filled);
        }
    }

    fn half_close(&mut self) {
        self.client.half_close();
    }

    fn close(&mut self) {
        self.client.close();
    }

    fn reset(&mut self) {
        self.client.reset();
    }
}

mod always {
    use super::*;
    contract_tests!(Stage::new(Flavour::linux()));
}

mod once {
    use super::*;
    contract_tests!(Stage::new(Flavour::solaris()));
}

mod refusals {
    use super::*;
    contract_tests!(Stage::new(Flavour::bsd()));
}
