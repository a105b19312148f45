// SPDX-License-Identifier: BSD-3-Clause

//! senders/python: the package by itself, and its workers in the real gunicorn before a real lingerd.

mod gunicorn;
mod package;
