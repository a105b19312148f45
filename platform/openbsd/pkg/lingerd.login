# SPDX-License-Identifier: BSD-3-Clause
# Each connection that lingers takes a descriptor.
lingerd:\
	:openfiles=8192:\
	:tc=daemon:
