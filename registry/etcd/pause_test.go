package registryetcd

const childVariable = "ROTA_TEST_CHILD"

func child() {}
