# SPDX-License-Identifier: Apache-2.0
# husk.fish - completion for fish

set -l run '__fish_seen_subcommand_from run'
complete -c husk -f
complete -c husk -n __fish_use_subcommand -a run -d 'boot a kernel in a new machine'
complete -c husk -n __fish_use_subcommand -a doctor -d 'what this host can run, and why'
complete -c husk -n __fish_use_subcommand -l version -d 'print the version'
complete -c husk -l help -d 'print the options'
complete -c husk -n $run -l kernel -rF -d 'kernel to boot'
complete -c husk -n $run -l initrd -rF -d 'initial RAM disk'
complete -c husk -n $run -l cmdline -x -d 'kernel command line'
complete -c husk -n $run -l cpus -x -d 'vCPUs, 1 to 64'
complete -c husk -n $run -l memory -x -d 'RAM, with K, M or G'
complete -c husk -n $run -l engine -xa 'auto kvm soft soft,interp' -d engine
complete -c husk -n $run -l disk -rF -d 'raw image or block device'
complete -c husk -n $run -l device -xa 'virtio-blk,file= virtio-net,nat virtio-rng debug-exit pc-testdev' -d 'further device'
complete -c husk -n $run -l net -xa 'shared tap= unix= fd= none' -d 'network device'
complete -c husk -n $run -l forward -x -d 'port of the host to one of the guest'
complete -c husk -n $run -l serial -rFa 'stdio pty none' -d 'first serial port'
complete -c husk -n $run -l reboot -xa 'exit again' -d 'what a reset does'
complete -c husk -n $run -l stats -d 'count what the vCPUs did'
complete -c husk -n $run -l timeout -x -d 'end after this time'
complete -c husk -n '__fish_seen_subcommand_from doctor' -l json -d 'one JSON object'
