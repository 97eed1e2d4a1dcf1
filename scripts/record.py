from cifar_lit.benchmarks.record import main

raise SystemExit(main())
