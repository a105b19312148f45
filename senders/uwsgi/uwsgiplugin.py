# SPDX-License-Identifier: BSD-3-Clause
# What 'uwsgi --build-plugin' is told.
NAME = "lingerd"
CFLAGS = []
LDFLAGS = []
LIBS = []
# Lingerd's sender in C, in a clone of its repository.
GCC_LIST = ["lingerd", "../../apache-1.3/ap_lingerd"]
