<?php
// SPDX-License-Identifier: BSD-3-Clause

declare(strict_types=1);

namespace Lingerd;

/** What is still to be written, of one file, from a byte of it on. */
final class Part
{
    /**
     * @param resource $file what fopen() returns, or tmpfile()
     * @param bool $ours whether nobody else has use for the file, so that lingerd may give back the room that it takes
     *     up while it is sent
     */
    public function __construct(
        public readonly mixed $file,
        public readonly int $offset,
        public readonly int $length,
        public readonly bool $ours = false,
    ) {
        if ($offset < 0 || $length < 0) {
            throw new \ValueError('a part has no negative offset or length');
        }
    }
}
