<?php
// SPDX-License-Identifier: BSD-3-Clause
//
// What Composer makes of senders/php/composer.json, for the tests.

declare(strict_types=1);

spl_autoload_register(function (string $class): void {
    $package = __DIR__ . '/../../senders/php/';
    foreach (json_decode(file_get_contents($package . 'composer.json'), true)['autoload']['psr-4'] as $prefix => $folder) {
        if (str_starts_with($class, $prefix)) {
            require $package . $folder . strtr(substr($class, strlen($prefix)), '\\', '/') . '.php';
        }
    }
});
