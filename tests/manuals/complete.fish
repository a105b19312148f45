# SPDX-License-Identifier: BSD-3-Clause
#
# What fish offers on Tab: fish --no-config complete.fish FOLDER LINE... prints for each line '= LINE' and then
# what is offered, one word a line. FOLDER has the completion scripts.

for script in $argv[1]/*.fish
    source $script
end
for line in $argv[2..-1]
    echo "= $line"
    # Behind a tab is what it means.
    complete -C $line | string replace -r '\t.*' ''
end
exit 0 # not what the last command had
