// Score a VCF in parts, side by side, and join them: nextflow run main.nf --vcf in.vcf.gz --fasta ref.fa

params.vcf     = "${projectDir}/../phix174/variants.vcf"
params.fasta   = "${projectDir}/../phix174/phix174.fa"
params.outdir  = 'out'
params.shards  = 4
params.options = '--window 256 --tile'

process SCORE {
    cpus 1
    errorStrategy 'retry'
    maxRetries 2

    input:
    tuple val(number), path(vcf), path(fasta)

    output:
    tuple val(number), path("${number}.vcf.gz")

    script:
    """
    evo2 score-variants ${vcf} -f ${fasta} -o ${number}.vcf.gz \\
        --shard ${number}/${params.shards} --threads ${task.cpus} ${params.options}
    """
}

process JOIN {
    publishDir params.outdir, mode: 'copy'

    input:
    path parts

    output:
    path 'scored.vcf.gz'

    // bgzip files join as they are, and only the first part has a header.
    script:
    """
    cat ${parts} > scored.vcf.gz
    """
}

workflow {
    shards = Channel.of(1..params.shards).map { number -> tuple(number, file(params.vcf), file(params.fasta)) }
    parts  = SCORE(shards).toSortedList { a, b -> a[0] <=> b[0] }.map { sorted -> sorted.collect { it[1] } }
    JOIN(parts)
}
